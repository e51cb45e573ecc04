"""What a text has to be, as grammars: compiled, followed token by token, and as masks over the vocabulary."""
