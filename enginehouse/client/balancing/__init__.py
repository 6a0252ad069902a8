"""Which inference server gets a request, and what happens when it cannot take it. docs/clients.md says it for users."""
