-- Room for the views of another folder.
ATTACH ':memory:' AS {database}
