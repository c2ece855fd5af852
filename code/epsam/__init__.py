"""EP-SAM: tumour segmentation of H&E whole-slide images from patch labels, by way of CAMs and SAM."""

__version__ = "0.2.0"
