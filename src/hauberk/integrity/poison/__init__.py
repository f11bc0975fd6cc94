"""Poisons of training data, and audits that find them. A new one is one file and one line here."""

from hauberk.integrity.poison.label_flip import label_flip as label_flip
from hauberk.integrity.poison.neighbours import knn_disagreement as knn_disagreement
