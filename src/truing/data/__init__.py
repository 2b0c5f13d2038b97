"""From files to packed trees: read, formats, chat, tree, source."""
