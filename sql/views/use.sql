USE {database}
