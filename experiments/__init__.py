"""One script or package per question; each uses seqagg's public names, and `speed` its kernels."""
