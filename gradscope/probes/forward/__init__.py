"""What is computed: operations, modules, and what torch compiles."""
