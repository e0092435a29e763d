"""Files, archives, bodies and tensors made to do harm, by code; each with the status that it must be refused with."""
