"""The same ResNet-50 from Keras and from PyTorch: is it the same graph, and as fast (the paper's claim C7)?"""
