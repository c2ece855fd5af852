"""The student: a segmentation network on the classifier's trunk that learns what the chain before it predicts."""
