"""Where rows come from: tables, files, databases, and the values of their cells."""
