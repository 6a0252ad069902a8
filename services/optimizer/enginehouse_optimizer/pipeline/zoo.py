"""Architectures that the worker's zoo makes, and what their authors feed them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from enginehouse_optimizer.pipeline.inputs import Preprocessing

# Caffe's way: channels blue, green, red, less ImageNet's mean colour (Simonyan and Zisserman 2014; He et al. 2015).
_CAFFE = Preprocessing(mean=(103.939, 116.779, 123.68), deviation=(1.0,), bgr=True)
# To [-1, 1] (Szegedy et al. 2015 and 2016; He et al. 2016 as Keras trained it).
_SYMMETRIC = Preprocessing(mean=(127.5,), deviation=(127.5,))

PREPROCESSING: Mapping[str, Preprocessing] = MappingProxyType(
    {
        "inception_v3": _SYMMETRIC,
        "inception_v4": _SYMMETRIC,
        "resnet_v1_50": _CAFFE,
        "resnet_v2_50": _SYMMETRIC,
        "vgg16": _CAFFE,
        "vgg19": _CAFFE,
    }
)
ARCHITECTURES = tuple(PREPROCESSING)
