"""The desired state: watched at the optimizer, kept on disk, engines fetched by digest."""
