"""The explorer: pages that show a study of a lake, let it be asked by SQL, and try edits on its subject."""
