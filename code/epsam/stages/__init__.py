"""The stages of the method, one file per command of ./train.sh."""
