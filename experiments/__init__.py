"""One script or package per question; each uses seqagg's public names only."""
