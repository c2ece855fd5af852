"""Slides: reading them, their annotations, and cutting patches from them."""

from epsam.slides.annotation import Annotation, load_annotation
from epsam.slides.overview import overview
from epsam.slides.reader import open_slide
from epsam.slides.slide import Slide, read_window

__all__ = ["Annotation", "Slide", "load_annotation", "open_slide", "overview", "read_window"]
