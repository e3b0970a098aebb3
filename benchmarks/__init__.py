"""What a node serves to consumers, beside what its hardware could do at best."""
