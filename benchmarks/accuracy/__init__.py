"""Accuracy beside speed: two of the paper's networks trained on Fashion-MNIST, and every mode's top-1 and top-5."""
