{column}::VARCHAR AS {alias}
