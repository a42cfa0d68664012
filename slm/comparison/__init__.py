"""Any number of runs compared: ranked on the same held-out documents, in a table and in a page."""
