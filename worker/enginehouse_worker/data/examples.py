"""`tf.train.Example`: the message in a TFRecord, defined here because the real one comes with all of TensorFlow.

    message Example   { Features features = 1; }
    message Features  { map<string, Feature> feature = 1; }
    message Feature   { oneof kind { BytesList bytes_list = 1; FloatList float_list = 2; Int64List int64_list = 3; } }

Each list has one repeated field `value = 1`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from enginehouse_worker.errors import WorkerError

_Field = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "enginehouse_worker.tfrecord"
# Where tf.train's own examples keep the class; alone this name need not be there.
DEFAULT_IMAGE = "image/encoded"
DEFAULT_LABEL = "image/class/label"


@dataclass(frozen=True)
class ExampleReader:
    """Takes an encoded image and a label out of an Example's bytes.

    `label_offset` is subtracted from each label.
    """

    image: str = DEFAULT_IMAGE
    label: str = DEFAULT_LABEL
    label_offset: int = 0

    def read(self, data: bytes, number: int) -> tuple[bytes, int | None]:
        """The image file's bytes and the class index; None where the example has no such feature.

        Raises:
            WorkerError: INVALID_ARGUMENT naming the record and the features that it has.
        """
        try:
            features = _EXAMPLE.FromString(data).features.feature
        except DecodeError:
            raise _wrong(number, "it is no tf.train.Example") from None
        return self._image(features, number), self._label(features, number)

    def _image(self, features: Mapping[str, Any], number: int) -> bytes:
        if self.image not in features:
            raise _wrong(number, f"it has no feature {self.image!r}; it has {described(features)}")
        values = features[self.image].bytes_list.value
        if len(values) != 1 or not values[0]:
            kind = described({self.image: features[self.image]})
            raise _wrong(number, f"its feature {kind}; expected the bytes of one image file (JPEG, PNG, ...)")
        return bytes(values[0])

    def _label(self, features: Mapping[str, Any], number: int) -> int | None:
        if self.label not in features:
            if self.label != DEFAULT_LABEL:
                raise _wrong(number, f"it has no feature {self.label!r}; it has {described(features)}")
            return None
        values = features[self.label].int64_list.value
        if len(values) != 1:
            kind = described({self.label: features[self.label]})
            raise _wrong(number, f"its feature {kind}; expected one integer, the class index")
        label = int(values[0]) - self.label_offset
        if not 0 <= label < 2**31:
            raise _wrong(
                number,
                f"its label is {values[0]}, less the offset {self.label_offset} {label}; expected 0 or more",
            )
        return label


def described(features: Mapping[str, Any]) -> str:
    """The features there are, for messages: "'image/encoded' (1 bytes)", ..."""
    shown = []
    for name in sorted(features)[:16]:
        kind = features[name].WhichOneof("kind")
        count = len(getattr(features[name], kind).value) if kind else 0
        shown.append(f"{name!r} ({count} {kind.removesuffix('_list') if kind else 'values'})")
    return ", ".join(shown) + (", ..." if len(features) > 16 else "") if shown else "none"


def _example_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name="enginehouse_worker/example.proto", package=_PACKAGE, syntax="proto3"
    )

    def message(name: str) -> descriptor_pb2.DescriptorProto:
        return file.message_type.add(name=name)

    def field(of: descriptor_pb2.DescriptorProto, name: str, number: int, kind: Any, **more: Any) -> None:
        of.field.add(name=name, number=number, type=kind, label=more.pop("label", _Field.LABEL_OPTIONAL), **more)

    for name, kind in (
        ("BytesList", _Field.TYPE_BYTES),
        ("FloatList", _Field.TYPE_FLOAT),
        ("Int64List", _Field.TYPE_INT64),
    ):
        field(message(name), "value", 1, kind, label=_Field.LABEL_REPEATED)
    feature = message("Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes_list", "float_list", "int64_list"), 1):
        list_type = f".{_PACKAGE}.{name.title().replace('_', '')}"
        field(feature, name, number, _Field.TYPE_MESSAGE, type_name=list_type, oneof_index=0)
    features = message("Features")
    entry = features.nested_type.add(name="FeatureEntry", options=descriptor_pb2.MessageOptions(map_entry=True))
    field(entry, "key", 1, _Field.TYPE_STRING)
    field(entry, "value", 2, _Field.TYPE_MESSAGE, type_name=f".{_PACKAGE}.Feature")
    entries = f".{_PACKAGE}.Features.FeatureEntry"
    field(features, "feature", 1, _Field.TYPE_MESSAGE, type_name=entries, label=_Field.LABEL_REPEATED)
    field(message("Example"), "features", 1, _Field.TYPE_MESSAGE, type_name=f".{_PACKAGE}.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Example"))


def _wrong(number: int, message: str) -> WorkerError:
    return WorkerError("INVALID_ARGUMENT", f"record {number} of the TFRecord file cannot be used: {message}")


_EXAMPLE = _example_class()
