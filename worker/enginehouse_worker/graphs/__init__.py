"""Reading ONNX graphs: who makes a tensor, who reads it, its type and shape, and the model's signature."""
