"""Frames -> genre probabilities: a small convolutional network, in Keras on PyTorch.

It is meant to be what people train in an afternoon, not the best there is: it gets somewhat less
than half of the frames right, and is surer than it should be.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.tunes.spectrogram import FLOOR, FRAME_STEPS, N_MELS, Spectrogram
from experiments.tunes.tunes import GENRES

CHANNELS = 8
LEARNING_RATE = 2e-3
TRAINING_BATCH, PREDICTION_BATCH = 128, 512


def train(
    frames: Spectrogram,
    genres: NDArray[np.int64],
    groups: NDArray[np.int64],
    *,
    epochs: int,
    seed: int,
) -> Any:
    """Train a network, as `seqagg.frozen.out_of_fold` asks for it.

    Parameters
    ----------
    frames : array of shape (n_frames, frame_steps, n_mels)
        In decibels.
    genres : array of shape (n_frames,)
        Positions in `tunes.GENRES`; every frame has the genre of its song.
    groups : array of shape (n_frames,)
        Of no use here, where nothing is held out.
    epochs, seed : int
        Passes over the frames, and the seed of weights and shuffling.

    Returns
    -------
    keras.Model
    """
    keras = _keras()
    keras.utils.set_random_seed(seed)
    network = build_network(len(GENRES))
    steps = epochs * -(-len(frames) // TRAINING_BATCH)
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    network.compile(
        keras.optimizers.AdamW(rate, weight_decay=1e-3), "sparse_categorical_crossentropy"
    )
    network.fit(
        frames.astype(np.float32), genres, batch_size=TRAINING_BATCH, epochs=epochs, verbose=0
    )
    return network


def build_network(n_genres: int) -> Any:
    """Lay out four convolutions over time and mel, averaged over both, about 20,000 weights."""
    layers = _keras().layers
    inputs = _keras().Input((FRAME_STEPS, N_MELS))
    x = layers.Rescaling(2 / FLOOR, offset=1.0)(inputs)  # decibels to about -1 .. 1
    x = layers.Reshape((FRAME_STEPS, N_MELS, 1))(x)
    x = layers.Conv2D(CHANNELS, (5, 5), strides=2, padding="same", use_bias=False)(x)
    x = layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(x))
    for width in (2, 3, 4):
        x = layers.Conv2D(width * CHANNELS, (5, 3), padding="same", use_bias=False)(x)
        x = layers.MaxPooling2D(2)(x)
        x = layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x))
    return _keras().Model(inputs, layers.Dense(n_genres, activation="softmax")(x))


def _keras() -> Any:
    """Import Keras on PyTorch, with one thread: two tasks share two cores better than one does.

    One thread also makes the sums, and so the scores, the same from run to run.
    """
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import torch

    if keras.backend.backend() != "torch":
        raise RuntimeError("Keras was imported with another backend before")
    torch.set_num_threads(1)
    return keras
