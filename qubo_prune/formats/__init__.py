"""Problems as files (JSON, COO, qbsolv, LP, Ising) and as objects of other libraries."""
