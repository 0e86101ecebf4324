"""Real dance tunes, played by a machine and scored frame by frame: how `seqagg/data` was made.

The files are the flow: `tunes` (ABC text -> notes and genres; `notation` reads the ABC),
`split` (train and test, folds), `synth` (notes -> audio), `spectrogram` (audio -> log-mel
frames), `classifier` (frames -> probabilities), and `__main__`, the command.
"""
