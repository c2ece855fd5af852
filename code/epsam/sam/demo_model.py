"""The demo's Segment Anything model: segment_anything's own classes at a size that a laptop's CPU can run."""

from functools import partial

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

INPUT_PX = 256
PATCH_PX = 8
WIDTH = 128
WINDOW = 8
GLOBAL_BLOCKS = (3, 5)


def build_sam_demo() -> Sam:
    """A SAM of 1.3 million parameters with random weights: input 256 px, embeddings (128, 32, 32).

    Wired as SAM ViT-B, with small windows and patches of 8 px, since a nucleus is hardly larger.
    """
    side = INPUT_PX // PATCH_PX
    encoder = ImageEncoderViT(
        img_size=INPUT_PX,
        patch_size=PATCH_PX,
        embed_dim=64,
        depth=6,
        num_heads=2,
        mlp_ratio=4,
        out_chans=WIDTH,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=WINDOW,
        global_attn_indexes=GLOBAL_BLOCKS,
    )
    prompt_encoder = PromptEncoder(
        embed_dim=WIDTH, image_embedding_size=(side, side), input_image_size=(INPUT_PX, INPUT_PX), mask_in_chans=16
    )
    decoder = MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=512, num_heads=4),
        transformer_dim=WIDTH,
        iou_head_depth=3,
        iou_head_hidden_dim=WIDTH,
    )
    return Sam(encoder, prompt_encoder, decoder, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
