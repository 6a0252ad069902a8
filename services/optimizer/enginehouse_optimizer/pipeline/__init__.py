"""From a request to engines: plan (pure), run stages, publish."""
