"""Search spaces of the literature: `darts`, `enas` (micro and macro) and `nasbench201`, each with its operations."""
