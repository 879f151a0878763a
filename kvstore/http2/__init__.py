"""HTTP/2 frames and HPACK, for the engine and for the client's channel: pure, without state."""
