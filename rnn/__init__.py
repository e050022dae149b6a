"""Recurrent cells for language models, the second half of the paper. Names are those of the original `rnn/`."""
