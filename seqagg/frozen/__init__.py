"""Frame scores of a frozen classifier, each under the name of its song.

The songs' names are what is lost first on the way through ``model.predict``. Here they go along:
`score_songs` runs a classifier over named frames and gives `Songs`, `score_to_cache` does so for
more frames than fit into memory, and `out_of_fold` trains the classifier as well, so that no song
is scored by a model that has seen it.
"""

from seqagg.frozen.scoring import score_songs, score_to_cache
from seqagg.frozen.training import nested_out_of_fold, out_of_fold

__all__ = ["nested_out_of_fold", "out_of_fold", "score_songs", "score_to_cache"]
