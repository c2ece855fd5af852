"""EP-SAM: tumour segmentation of H&E whole-slide images from patch labels, by way of CAMs and SAM."""

import os

# A PNG of a megabyte can claim to be a picture of gigabytes. OpenCV reads its limit once, when it is imported.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**27))

__version__ = "0.1.0"
