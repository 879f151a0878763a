"""Our tables of nftables: what they say, how they are written, heard of and put right."""
