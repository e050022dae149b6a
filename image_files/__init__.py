"""Images in files: decoding them, folders of them, and what is known of these folders."""
