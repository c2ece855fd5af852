"""YAML as settings use it: plain values, and no key twice."""

from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

NOT_YAML = (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError)
"""What PyYAML raises: its own errors, and those of the types it makes (`2024-13-45`, `!!bool x`, `[[[[...`)."""
MERGE = "tag:yaml.org,2002:merge"
"""Of the key `<<`, which may come more than once."""


def read_yaml(text: str | bytes) -> Any:
    """What YAML says; bytes are UTF-8, or UTF-16 with a byte-order mark. Raises NOT_YAML, also where a key comes twice."""
    try:
        return yaml.load(text, _Loader)
    except ReaderError as error:
        if error.encoding != "unicode":  # that is the name for letters that are known, but not allowed
            raise ValueError(f"its letters are not UTF-8 (byte {error.position}); save it as UTF-8") from None
        raise


class _Loader(yaml.SafeLoader):
    """Refuses what PyYAML does in silence: of two values of one key, take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            if key.value in seen:
                raise ConstructorError(None, None, f"`{key.value}` comes twice; keep one of them", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)
