"""Spanish; things carry the articles and endings that agree with them."""

from axk1.tasks.situations.grammar import Language


def _thing(words: str) -> str:
    one, many, gender = words.split()
    female = gender == "f"
    endings = ("cuántas", "las", "otras", "una", "todas") if female else ("cuántos", "los", "otros", "un", "todos")
    return " ".join((one, many, endings[0], endings[0].capitalize(), *endings[1:]))


LANGUAGE = Language(
    people=tuple(
        "Lucía ella|Marcos él|Elena ella|Pablo él|Sofía ella|Diego él|Carmen ella|Javier él|Rosa ella|Luis él|Marta ella|"
        "Hugo él|Mi_hermana ella|Mi_hermano él|La_profesora ella|El_granjero él|Mi_madre ella|Mi_abuelo él|Pedro él|"
        "Inés ella|Andrés él|Julia ella|Mi_amigo él|El_tendero él|Mi_tía ella|Un_niño él|Una_niña ella|Raquel ella|Iván él".split(
            "|"
        )
    ),
    people_slots=("who", "he"),
    things=tuple(
        _thing(words)
        for words in (
            "manzana manzanas f|libro libros m|moneda monedas f|lápiz lápices m|pegatina pegatinas f|canica canicas f|"
            "carta cartas f|sello sellos m|huevo huevos m|concha conchas f|botón botones m|galleta galletas f|"
            "naranja naranjas f|globo globos m|flor flores f|entrada entradas f|foto fotos f|panecillo panecillos m|"
            "botella botellas f|silla sillas f|caja cajas f|juguete juguetes m|bolígrafo bolígrafos m|rosa rosas f|"
            "caramelo caramelos m|tomate tomates m|cuaderno cuadernos m|plato platos m|ladrillo ladrillos m|"
            "melocotón melocotones m|nuez nueces f|lámpara lámparas f|árbol árboles m|pez peces m|camisa camisas f|"
            "hoja hojas f|taza tazas f|semilla semillas f|muñeca muñecas f|toalla toallas f|pastel pasteles m|"
            "pelota pelotas f|vela velas f|llave llaves f|gorra gorras f|coche coches m|pera peras f|clavo clavos m"
        ).split("|")
    ),
    thing_slots=("one", "obj", "cuantos", "Cuantos", "los", "otros", "un", "todos"),
    small=("uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve", "diez", "once", "doce"),
    signs={
        "+": ("más", "más", "y"),
        "-": ("menos", "menos"),
        "*": ("por", "por", "multiplicado por"),
        "/": ("entre", "dividido entre", "dividido por"),
    },
    ask=(
        "[¿Cuánto es|¿Cuánto da|¿Cuánto son|Calcula|Dime cuánto es|cuanto es|Resuelve|¿Qué resultado da|Halla] {e}[?|.|]",
        "{e}[ =|=|=?| = ?|, ¿cuánto es?| cuánto da| es igual a|, ¿cuánto da?|?|]",
        "[Necesito|Ayúdame con|Haz|Puedes calcular] {e}[, por favor|.|]",
        "{e}",
    ),
    frames={
        "add": (
            "[Suma|Puedes sumar|Súmame] {a} [y|más|con] {b}[.| por favor|]",
            "[¿Cuánto es|¿Cuál es|Dime|Calcula] la suma de {a} y {b}[?|.|]",
            "[Si a {a} le sumo {b}|Si sumo {a} y {b}|A {a} le añado {b}][, ¿cuánto da?|, ¿cuánto es?|. ¿Cuánto sale?]",
            "¿Qué número es {b} [más|mayor] que {a}?",
        ),
        "add3": (
            "[Suma|Súmame|Calcula la suma de|¿Cuánto suman] {a}, {b} y {c}[.|?|]",
            "{a} más {b} más {c}[, ¿cuánto es?|]",
        ),
        "subtract": (
            "[Resta|Quita|Réstale] {b} a {a}[.|]",
            "[Si a {a} le [quito|resto] {b}|A {a} le [quito|resto] {b}][, ¿cuánto queda?|. ¿Cuánto queda?|, ¿cuánto da?]",
            "[¿Cuál es|Dime|Calcula] la [diferencia|resta] [entre|de] {a} y {b}[?|.|]",
            "¿Qué número es {b} menos que {a}?",
        ),
        "multiply": (
            "[Multiplica|Puedes multiplicar] {a} por {b}[.| por favor|]",
            "[¿Cuánto es|¿Cuál es] el producto de {a} y {b}?",
            "[¿Cuánto es|Dime] {b} veces {a}[?|]",
            "Si multiplico {a} por {b}, ¿[cuánto da|qué sale]?",
        ),
        "multiply2": (
            "[Multiplica|Puedes multiplicar] {a} por {b}[.|]",
            "[¿Cuánto es|¿Cuál es] el producto de {a} y {b}?",
        ),
        "divide": (
            "[Divide|Puedes dividir|Reparte] {a} [entre|por] {b}[.| por favor|]",
            "Si divido {a} [entre|por] {b}, ¿[cuánto da|qué sale]?",
            "¿Cuántas veces cabe {b} en {a}?",
        ),
        "double": ("[¿Cuánto es|¿Cuál es|Calcula|cual es|Dime] el doble de {a}[?|]", "el doble de {a}[, ¿cuánto es?|]"),
        "triple": ("[¿Cuánto es|¿Cuál es|Calcula] el triple de {a}[?|]", "triplica {a}"),
        "half": ("[¿Cuánto es|¿Cuál es|Calcula|cual es|Dime] la mitad de {a}[?|]", "la mitad de {a}[, ¿cuánto es?|]"),
        "percent": ("[¿Cuánto es|Calcula|Dime|¿Cuál es] el {b}[%| %| por ciento] de {a}[?|.|]",),
        "bigger": (
            "¿Cuánto [mayor|más grande] es {a} que {b}?",
            "¿Cuánto [le falta a {b} para llegar a {a}|hay que sumar a {b} para tener {a}|va de {b} a {a}]?",
            "¿Cuánto menor es {b} que {a}?",
        ),
        "sub_times": (
            "[A {a} le [quito|resto] {b}|Resta {b} a {a}] y [lo que queda|el resultado|luego] lo multiplic[o|as] por {c}. ¿[Qué resultado sale|Cuánto da|Cuánto es]?",
        ),
        "add_times": (
            "[A {a} le sumo {b}|Suma {a} y {b}] y [el resultado|luego] lo multiplic[o|as] por {c}. ¿[Qué resultado sale|Cuánto da|Cuánto es]?",
        ),
        "times_add": (
            "[Multiplica|Si multiplico|Multiplico] {a} por {b} y [luego |después |][suma|sumo|súmale|añado] {c}[. ¿Cuánto da?|, ¿cuánto es?|]",
        ),
        "times_sub": (
            "[Multiplica|Si multiplico|Multiplico] {a} por {b} y [luego |después |][resta|resto|réstale|quito] {c}[. ¿Cuánto da?|, ¿cuánto es?|]",
        ),
        "average": ("[¿Cuál es|Calcula|Dime] [la media|el promedio] de {a}, {b} y {c}[?|.|]",),
        "total2": (
            "{who} [tiene|compró|recogió|hizo] {a} {obj} y [luego |después |][compra|consigue|hace|le regalan] {b} más. ¿{Cuantos} [tiene|hay|son] [en total|ahora|]?",
            "[Hay|Tengo|Tenemos] {a} {obj} [pequeñas|grandes|de Ana] y {b} [nuevas|rojas|de Juan]. ¿{Cuantos} [{obj} |][hay|son] en total?",
            "{who} [caminó|manejó|corrió|recorrió] {a} [km|kilómetros|metros] [el lunes|ayer|por la mañana|el sábado] y {b} [km |][el martes|hoy|por la tarde|el domingo]. ¿Cuántos [km |kilómetros |metros |]hizo en total?",
            "{who} gastó {a} [euros|pesos] en [comida|zapatos] y {b} en [un libro|un regalo]. ¿Cuánto gastó[ en total|]?",
        ),
        "total3": (
            "[Una granja|Un granjero|El zoo] tiene {a} [vacas|cerdos|cabras], {b} [ovejas|caballos|patos] y {c} [gallinas|conejos|gatos]. ¿Cuántos animales [tiene|hay|son][ en total|]?",
            "{who} tiene {a} {obj}, {b} [limones|relojes] y {c} [mapas|sombreros]. ¿Cuántas cosas [tiene|son][ en total|]?",
            "[Pagué|Gasté] {a} en [comer|gasolina], {b} en [café|el bus] y {c} en [el cine|aparcar]. ¿Cuánto [es|gasté] en total?",
        ),
        "left": (
            "{who} [tiene|tenía|compró] {a} {obj} y [come|comió|pierde|perdió|regaló|vendió|usó|rompió] {b}. ¿{Cuantos} [{obj} |]le quedan?",
            "[Había|Hay|Teníamos] {a} {obj} [en la caja|en la tienda|]. [Se vendieron|Se comieron|Se perdieron|Faltan] {b}. ¿{Cuantos} [quedan|hay ahora|{obj} quedan]?",
            "[Mi|El|Este] libro tiene {a} páginas y [voy por la|he leído|estoy en la] {b}. ¿Cuántas [páginas |]me [faltan|quedan]?",
            "Necesito {a} {obj} y [tengo|solo tengo|ya tengo] {b}. ¿{Cuantos} me faltan?",
            "{who} tenía {a} [euros|pesos] y gastó {b}. ¿Cuánto [dinero |]le queda?",
            "El [camino|viaje] es de {a} km y [llevo|ya hice] {b}. ¿Cuántos [km |]faltan?",
        ),
        "left2": (
            "{who} tenía {a} {obj}, [dio|vendió|regaló] {b} y [perdió|comió|usó] {c}. ¿{Cuantos} le quedan?",
            "Tenía {a} euros. Gasté {b} en [comida|un libro] y {c} en [el bus|agua]. ¿Cuánto me queda?",
        ),
        "more_than": (
            "{who} tiene {a} años y su [hermano|hermana|primo|padre] tiene {b} [años |]más. ¿[Qué edad|Cuántos años] tiene [él|ella|su hermano|el otro]?",
            "{who} tiene {a} {obj} y [Raúl|Nora|su amigo] tiene {b} más[ que {who}|]. ¿{Cuantos} tiene [Raúl|Nora|su amigo|el otro]?",
        ),
        "less_than": (
            "{who} tiene {a} {obj} y [Raúl|Nora|su amigo] tiene {b} menos. ¿{Cuantos} tiene [Raúl|Nora|su amigo]?",
            "{who} tiene {a} años y su [hermano|hermana|primo] tiene {b} menos. ¿[Qué edad|Cuántos años] tiene?",
        ),
        "both_more": (
            "{who} tiene {a} {obj} y [Raúl|Nora|su amigo] tiene {b} más. ¿{Cuantos} tienen [entre los dos|juntos|en total]?",
        ),
        "before_loss": (
            "[Después de|Tras] [regalar|perder|comer|vender] {a} {obj} [me quedan|le quedan|quedan] {b}. ¿{Cuantos} [tenía|había] [al principio|antes]?",
            "{who} [regaló|perdió|comió|vendió] {a} {obj} y le quedan {b}. ¿{Cuantos} tenía[ al principio| antes|]?",
            "Gasté {a} euros y me quedan {b}. ¿Cuánto tenía?",
        ),
        "before_gain": (
            "{who} [compró|recibió|encontró] {a} {obj} y ahora tiene {b}. ¿{Cuantos} tenía [antes|al principio]?",
        ),
        "out_in": (
            "[Un autobús|El autobús|Un tren|El metro] [llevaba|lleva|tiene] {a} [pasajeros|personas]. [En la parada |En la estación |][bajaron|bajan|se bajan] {b} y [subieron|suben] {c}. ¿Cuántos [pasajeros |][lleva|hay|van][ ahora|]?",
            "{who} tenía {a} {obj}, [perdió|comió|vendió|regaló] {b} y [le regalaron|compró|encontró|recibió] {c}. ¿{Cuantos} [tiene|hay] [ahora|]?",
            "En [un frasco|la caja|la cesta] había {a} {obj}. [Los niños se comieron|Alguien tomó|Usamos] {b} y [la abuela metió|pusimos|trajeron] {c} más. ¿{Cuantos} hay[ ahora|]?",
        ),
        "in_out": (
            "[El autobús|El tren] lleva {a} personas. Suben {b} y bajan {c}. ¿Cuántas [hay|van]?",
            "{who} tiene {a} {obj}, [compra|recibe|encuentra] {b} más y [regala|pierde|come|vende] {c}. ¿{Cuantos} [le quedan|tiene]?",
        ),
        "price": (
            "[Cada|Un|La|El] {one} cuesta {a} [euros|pesos|dólares]. ¿Cuánto [cuestan|valen|pago por] {B}?",
            "¿Cuánto [cuestan|valen|son|pago por] {B} {obj} a {a} [euros|pesos] [cada uno|la unidad|cada una]?",
            "{who} compra {B} {obj} a {a} [euros|pesos] cada {un}. ¿Cuánto paga?",
            "Las {obj} [valen|cuestan] {a} cada una. ¿Cuánto [valen|son] {B}?",
        ),
        "price_plus": (
            "[Pedimos|Compré|Compramos] {A} {obj} a {b} [euros|pesos] cada {un} y [una ensalada|un refresco|una bolsa|un café] de {c}[ euros|]. ¿Cuánto [es la cuenta|es todo|pagamos|es]?",
            "{A} {obj} a {b} [euros|pesos] y [el envío|un pastel] a {c}. ¿Cuánto es en total?",
        ),
        "two_prices": (
            "{who} compra {A} {obj} a {b} [euros|pesos] cada {un} y {C} [panes|zumos|cafés] a {d}. ¿Cuánto [paga|es]?",
        ),
        "change": (
            "[Pagué|Pago|{who} paga] con [un billete de |]{a} [euros|pesos] [una camisa|un libro|la comida|algo] de {b}. ¿Cuánto [me devuelven|es el cambio|le devuelven]?",
            "[El libro|La comida] cuesta {b} [euros|pesos] y [pago|doy|pagan] con {a}. ¿[Cuánto es el cambio|Cuánto me devuelven|Qué cambio recibo]?",
        ),
        "change_times": (
            "Compro {B} {obj} a {c} euros cada {un} y pago con {a}. ¿Cuánto [me devuelven|es el cambio]?",
            "{who} tiene {a} euros y compra {B} {obj} de {c}. ¿Cuánto le queda?",
        ),
        "discount": (
            "[El móvil|La bici|El abrigo|Una {one}] [vale|cuesta|costaba] {a} [euros|pesos] [pero hoy tiene|y tiene|con] {b} de descuento. ¿Cuánto [pago|cuesta|vale ahora]?",
        ),
        "coins": (
            "Tengo {A} [billetes|monedas] de {b} y {C} [billetes|monedas|] de {d}. ¿Cuánto [dinero |][es|tengo|hay]?",
        ),
        "packs": (
            "[Cada|Una|En cada] [caja|bolsa|cesta] [trae|tiene|hay] {a} {obj} y [compramos|hay|tengo] {B}[ cajas| bolsas|]. ¿{Cuantos} [{obj} |]son[ en total|]?",
            "{who} tiene {B} [cajas|bolsas] [con|de] {a} {obj}[ cada una|]. ¿{Cuantos} [{obj} |][tiene|son|hay][ en total|]?",
            "¿{Cuantos} {obj} hay en {B} [cajas|bolsas|paquetes] de {a}?",
        ),
        "packs_plus": (
            "{who} tiene {B} [cajas|bolsas] de {a} {obj} y {c} [más|sueltos|aparte]. ¿{Cuantos} son en total?",
        ),
        "packs_less": (
            "{who} tiene {B} [cajas|bolsas] de {a} {obj} y [come|usa|vende|pierde] {c}. ¿{Cuantos} quedan?",
        ),
        "seats_free": (
            "[Un aparcamiento|Un teatro|Un tren] tiene {A} [plantas|filas|vagones] de {b} [plazas|asientos]. [Si hay|Hay] {c} [coches|ocupados|personas][, ¿|. ¿]cuántas [plazas |]quedan libres?",
        ),
        "bags": (
            "{who} [hizo|tiene|recogió] {a} {obj} y los [mete|pone|guarda] en [bolsas|cajas] de {b}. ¿Cuántas [bolsas|cajas] [llena|necesita|son]?",
            "[Van|Viajan|Hay] {a} [alumnos|personas|niños] [de excursión |]y en cada [furgoneta|barca|mesa] caben {b}. ¿Cuántas [furgonetas |barcas |mesas |][hacen falta|se necesitan]?",
            "¿Cuántos [equipos|grupos] de {b} [salen|se hacen] con {a} [niños|personas]?",
        ),
        "share": (
            "{who} reparte {a} {obj} [por igual |]entre {B} [amigos|niños|primos]. ¿{Cuantos} [recibe|le tocan a] cada uno?",
            "{B} [amigos|niños|hermanos] se reparten {a} {obj}[ por igual|]. ¿{Cuantos} [recibe|tocan a] cada uno?",
        ),
        "share_money": (
            "{B} [amigos|personas] pagan [a partes iguales |entre todos |]una [cena|cuenta] de {a} [euros|pesos]. ¿Cuánto [pone|paga] cada uno?",
            "Si {a} euros se reparten entre {B}, ¿cuánto [recibe|toca a] cada uno?",
        ),
        "share_rest": (
            "{who} tiene {a} {obj}, [come|guarda] {b} y reparte el resto entre {C} [amigos|niños]. ¿{Cuantos} recibe cada uno?",
        ),
        "share_sum": ("{who} junta {a} y {b} {obj} y hace {C} [grupos|montones] iguales. ¿{Cuantos} hay en cada uno?",),
        "unit_price": (
            "{B} {obj} cuestan {a} [euros|pesos]. ¿Cuánto cuesta [una|uno|cada {un}]?",
            "Pagué {a} [euros|pesos] por {B} {obj}. ¿Cuánto [vale|costó] cada {un}?",
        ),
        "times": (
            "{who} tiene {a} {obj} y [Raúl|Nora|su amigo] tiene {B} veces más. ¿{Cuantos} tiene [Raúl|Nora|su amigo]?",
            "[El gato|La caja|Un saco] pesa {a} kilos y [el perro|el baúl|una mesa] pesa {B} veces [más|eso]. ¿Cuánto pesa [el perro|el baúl|la mesa]?",
        ),
        "times_total": (
            "Una tienda vendió {a} {obj} por la mañana y {B} veces más por la tarde. ¿{Cuantos} vendió [en total|ese día]?",
        ),
        "per_day": (
            "{who} [corre|lee|hace|bebe|escribe] {a} [km|páginas|vasos|{obj}] [cada día|al día|cada mañana|por día]. ¿[Cuánto|Cuántos|Cuántas] [son |hace |]en {B} días?",
            "Una máquina hace {a} {obj} por hora. ¿{Cuantos} hace en {B} horas?",
        ),
        "saving": (
            "{who} [ahorra|gana|guarda] {a} [euros|pesos] [por|a la|cada] [semana|día]. [Si en|En] {B} [semanas|días] gasta {c}[, ¿|. ¿]cuánto [tiene|le queda]?",
        ),
        "cut": (
            "De [una cuerda|una cinta|un cable] de {a} [cm|metros] [corto|se cortan] {B} trozos de {c}[ cm|]. ¿Cuánto [mide lo que queda|queda]?",
        ),
        "uses": (
            "{who} tiene {a} {obj} y da {C} a cada uno de {B} [amigos|niños]. ¿{Cuantos} [le quedan|sobran]?",
            "{who} usa {c} {obj} [por|en cada] [camisa|día|pastel]. Tenía {a} y [hace|pasan] {B}. ¿{Cuantos} [le sobran|quedan]?",
        ),
        "speed": ("[Un coche|El tren|{who}] va a {a} km por hora. ¿Cuántos km [recorre|hace] en {B} horas?",),
        "score": (
            "[Mi|Nuestro] equipo hizo {a} puntos [primero|en la primera parte] y {b} después; el otro hizo {c}. ¿Por cuántos ganamos?",
        ),
        "cooler": (
            "[Ayer|A mediodía|Por la mañana] [hizo|hacía] {a} grados y [hoy|ahora|por la noche] hace {b} menos. ¿[Qué temperatura|Cuántos grados] hace[ hoy| ahora|]?",
        ),
        "warmer": (
            "[Ayer|De noche|Por la mañana] [hizo|hacía] {a} grados y [hoy|ahora] hace {b} más. ¿[Qué temperatura|Cuántos grados] hace[ hoy| ahora|]?",
        ),
        "class": (
            "[En mi clase somos|En la clase hay|Somos] {a} y hay {b} [chicas|chicos|niñas]. ¿Cuántos [chicos|son los demás|niños] hay?",
        ),
        "rows": ("[Un jardín|La sala|Un muro] tiene {B} filas de {a} {obj}. ¿{Cuantos} hay[ en total|]?",),
        "rectangle": ("[¿Cuál es|Calcula] el área de [un rectángulo|una sala|un campo] de {a} [m|cm] por {b}[?| m?|]",),
        "border": ("Un [campo|jardín|rectángulo] mide {a} m de largo y {b} m de ancho. ¿Cuál es [su|el] perímetro?",),
        "how_many_more": ("{who} tiene {a} {obj} y [Raúl|Nora|su amigo] tiene {b}. ¿{Cuantos} más tiene {who}?",),
        "how_much_dearer": (
            "[Un|La|El] {one} [rojo|grande|nuevo] cuesta {a} [euros|pesos] y [uno|el|la] [azul|pequeño|viejo] {b}. ¿Cuánto más [caro|cuesta] [es |][el|la] [rojo|grande|nuevo]?",
        ),
        "age_in": (
            "[Nací|{who} nació] en {a}. ¿Cuántos años [cumplo|tiene|tengo|cumple] en {b}?",
            "¿Cuántos años van de {a} a {b}?",
        ),
        "age_later": ("{who} tiene {a} años. ¿Cuántos [años |]tendrá [dentro de|en] {b} años?",),
        "age_other": ("{who} tiene {a} años. ¿Cuántos [años |]tenía hace {b} años?",),
        "days_between": (
            "¿Cuántos días [hay|van] del {a} al {b} de [marzo|mayo|junio]?",
            "¿Cuántos días faltan del {a} al {b}?",
        ),
    },
    events={
        "open": ("{who} [tiene|tenía|compró] {a} {obj}.", "[Hay|Había] {a} {obj} [en la caja|en casa|en la mesa]."),
        "gain": (
            "[Luego|Después|Más tarde|] [{he} |][compra|recibe|encuentra|gana] {b} más.",
            "[Luego|Después|] llegan {b} más.",
        ),
        "lose": ("[Luego|Después|Más tarde|] [{he} |][pierde|regala|vende|usa|come] {b}.",),
        "packs": ("[Luego|Después|] [{he} |][compra|recibe] {c} [bolsas|cajas] de {b}.",),
        "double": ("[Luego|Después|] se duplican.",),
        "ask": ("¿{Cuantos} [{obj} |][hay|quedan|tiene|son][ ahora| al final| en total|]?",),
    },
    other={
        "letter": (
            "¿Cuántas [letras {x}|veces sale la {x}|{x}|veces aparece la {x}] [hay |]en [la palabra |]{w}?",
            "[Cuenta|Dime cuántas veces sale] la [letra |]{x} en [la palabra |]{w}[.|]",
        ),
        "length": ("¿Cuántas letras tiene [la palabra |]{w}?", "[Cuenta|Número de] [las |]letras de {w}"),
        "up": (
            "[Ordena|Pon|Puedes ordenar|Coloca|Ordéname] [estos números |]{l} [de menor a mayor|en orden ascendente|en orden creciente][.|]",
            "[Ordena|Pon en orden] [de menor a mayor|ascendente]: {l}",
        ),
        "down": (
            "[Ordena|Pon|Puedes ordenar|Coloca|Ordéname] [estos números |]{l} [de mayor a menor|en orden descendente|en orden decreciente][.|]",
            "[Ordena|Pon en orden] [de mayor a menor|descendente]: {l}",
        ),
        "least": (
            "[¿Cuál es|Dime] el [número |][más pequeño|menor] [de|entre|de estos números:|de estos:] {l}[?|]",
            "¿Cuál [es|de estos números es] el menor? {l}",
        ),
        "most": (
            "[¿Cuál es|Dime] el [número |][más grande|mayor] [de|entre|de estos números:|de estos:] {l}[?|]",
            "¿Cuál [es|de estos números es] el mayor? {l}",
        ),
        "larger": ("¿[Qué número|Cuál] es [mayor|más grande][,|:|] {a} o {b}?",),
        "smaller": ("¿[Qué número|Cuál] es [menor|más pequeño][,|:|] {a} o {b}?",),
        "is_more": ("¿[Es {a} mayor que {b}|{a} es más que {b}|Es {a} más grande que {b}]?",),
        "is_less": ("¿[Es {a} menor que {b}|{a} es menos que {b}|Es {a} más pequeño que {b}]?",),
        "who_more": ("{p} tiene {a} {obj} y {q} [tiene |]{b}. ¿Quién tiene más[ {obj}|]?",),
        "who_less": ("{p} tiene {a} {obj} y {q} [tiene |]{b}. ¿Quién tiene menos[ {obj}|]?",),
        "day_after": (
            "[Hoy es|Si hoy es] {d}[.|,] ¿[Qué|qué] día [será|es] [dentro de|en] {n} días?",
            "¿Qué día [es|cae] {n} días después del {d}?",
            "[Tengo cita|La fiesta es] {n} días después del {d}. ¿Qué día [cae|es]?",
        ),
        "day_before": (
            "[Hoy es|Si hoy es] {d}[.|,] ¿[Qué|qué] día [fue|era] hace {n} días?",
            "¿Qué día es {n} días antes del {d}?",
        ),
        "tomorrow": ("Si hoy es {d}, ¿qué día es mañana?", "¿Qué día [va|viene] después del {d}?"),
        "yesterday": ("Si hoy es {d}, ¿qué día fue ayer?", "¿Qué día va antes del {d}?"),
        "over": ("Si ayer fue {d}, ¿qué día es mañana?", "Si hoy es {d}, ¿qué día es pasado mañana?"),
        "clock": (
            "[La película|La clase|Una reunión|El partido] empieza a las {t} y dura {n} minutos. ¿A qué hora [termina|acaba]?",
            "Son las {t}. ¿Qué hora [es|será] [dentro de|en] {n} minutos?",
        ),
        "unit_down": (
            "¿Cuántos {s} [son|hay en|tienen] {a} {b}?",
            "[Convierte|Pasa|Cambia] {a} {b} a {s}[.|]",
            "{a} {b} [en|son cuántos|a] {s}[?|]",
            "[Tardé|Dormí|Esperé] {a} {b}. ¿Cuántos {s} son?",
        ),
        "unit_mixed": ("¿Cuántos {s} son {a} {b} y {c} {s}?",),
        "unknown": (
            "¿Quién [ganó|inventó|pintó|escribió|descubrió] [el mundial|las elecciones|la radio|el Quijote|América]?",
            "[Escribe|Escríbeme|Inventa] [un poema|un cuento|una canción|un chiste] [sobre|de] [la luna|el amor|mi perro|la ciudad]",
            "[¿Cuál es|Dime] [la capital|la población|la historia] de [Francia|Brasil|Japón|Egipto|Canadá][?|]",
            "¿[Por qué|Cómo] [el cielo es azul|vuelan los pájaros|funciona un ordenador|se hace el arroz]?",
            "[Háblame|Cuéntame] [de|sobre] [historia|música|fútbol|las noticias|arte]",
            "¿[Qué tiempo hace|Va a llover] [hoy|mañana|en Madrid]?",
            "[Recomiéndame|Dime] [una película|un libro|un restaurante|una receta]",
            "[Traduce|Resume|Corrige] [este texto|mi correo|este artículo]",
        ),
    },
    units=(
        ("horas", "minutos", 60),
        ("minutos", "segundos", 60),
        ("días", "horas", 24),
        ("semanas", "días", 7),
        ("km", "metros", 1000),
        ("kilómetros", "metros", 1000),
        ("metros", "centímetros", 100),
        ("m", "cm", 100),
        ("kg", "gramos", 1000),
        ("kilos", "gramos", 1000),
        ("litros", "mililitros", 1000),
        ("docenas", "unidades", 12),
        ("docenas de huevos", "huevos", 12),
        ("años", "meses", 12),
        ("euros", "céntimos", 100),
        ("cm", "mm", 10),
    ),
    aside=(
        "[Hoy|Ayer] [hace buen día|llovió|hace calor].",
        "A {who} le gusta [la música|el té|el azul].",
        "[La tienda|La caja|La sala] es [nueva|grande|vieja].",
    ),
    before=("Oye, ", "Hola, ", "Pregunta: ", "Por favor, ", "A ver, ", "Buenas, ", "Entonces, "),
    after=(" Gracias.", " por favor", " Se me olvidó.", " Solo el número."),
    yes_no=("Sí.", "No."),
)
