"""The paper's second half: recurrent cells for language models, by the names of the original's `rnn/`."""
