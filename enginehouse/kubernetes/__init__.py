"""A cluster's API server, asked with plain JSON objects; all but `api_server` needs the extra `kubernetes`."""
