"""How the inference service bears wrong requests, bad connections and long load."""
