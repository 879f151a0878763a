"""Generated protobuf modules; regenerate with proto/generate, never edit."""
