"""From a frozen GraphDef to ONNX."""
