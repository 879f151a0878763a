"""Our table of nftables, and the programs that nft and the kernel are; nothing of the overlay."""
