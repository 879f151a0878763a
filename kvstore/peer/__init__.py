"""What members say to each other: message codec, connections."""
