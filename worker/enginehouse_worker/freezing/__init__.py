"""From a Keras model to a frozen GraphDef: loading, freezing, readable names."""
