"""Architectures that the worker's zoo makes."""

ARCHITECTURES = ("inception_v3", "inception_v4", "resnet_v1_50", "resnet_v2_50", "vgg16", "vgg19")
