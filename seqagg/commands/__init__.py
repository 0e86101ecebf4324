"""The commands, one file each; `seqagg.cli` puts them together."""
