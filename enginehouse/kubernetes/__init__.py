"""A cluster's API server, asked with plain JSON objects; needs the extra `kubernetes`."""
