"""What requests and replies look like, as pydantic models; they make /openapi.json."""
