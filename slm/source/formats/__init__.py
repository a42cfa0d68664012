"""One module per kind of file: its bytes → rows or documents."""
