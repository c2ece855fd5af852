"""The patch classifier: does a patch hold tumour? Its class activation maps are all the method knows of where."""

from epsam.classifier.adl import ADL
from epsam.classifier.frequency import high_frequency
from epsam.classifier.resnet import ResNetADL, build_classifier, load_classifier

__all__ = ["ADL", "ResNetADL", "build_classifier", "high_frequency", "load_classifier"]
