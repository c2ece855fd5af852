"""The patch classifier: does a patch hold tumour? Its class activation maps are all the method knows of where."""

from epsam.classifier.adl import ADL
from epsam.classifier.backbone import Backbone
from epsam.classifier.building import build_classifier, load_classifier
from epsam.classifier.efficientnet import EfficientNetLite0
from epsam.classifier.frequency import high_frequency
from epsam.classifier.resnet import ResNetADL

__all__ = ["ADL", "Backbone", "EfficientNetLite0", "ResNetADL", "build_classifier", "high_frequency", "load_classifier"]
